"""From an experiment to its steps, the state of each step, and the cost of the missing ones."""
