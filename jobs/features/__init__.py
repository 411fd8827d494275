"""Features: a frozen encoder over a task's images, kept in the store, and their spectrum."""
