"""Text in and out: one answer, files of prompts, the chat."""
