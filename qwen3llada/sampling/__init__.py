"""From a prompt to an answer by unmasking."""
