"""Running a plan: the executor on Ray, the sweep around it, its progress on a terminal."""
