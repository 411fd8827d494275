"""Fine-tuning: `lora` and `ft`, the methods that train the encoder itself on a task's images."""
