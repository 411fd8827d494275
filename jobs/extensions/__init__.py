"""Extensions: a researcher's own methods, noises, encoders and claims, one file each."""
