"""The downstream registry: one YAML file a task."""
