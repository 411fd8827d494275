"""Extensions: a researcher's own methods, encoders, noises and claims, one file each."""
