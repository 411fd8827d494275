"""The experiment file: its model, how it is read, and how its mistakes are explained."""
