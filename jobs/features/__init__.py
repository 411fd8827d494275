"""Features of a task's images from a frozen encoder, and their spectrum, kept in the store."""
