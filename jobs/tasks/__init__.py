"""The downstream tasks: one YAML file for each, a registry, and checks."""
