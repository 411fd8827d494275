"""Extensions: a researcher's own methods, noises and claims, one file each."""
