"""A model taught by another: from the teacher's answers, or token by token on its own."""
