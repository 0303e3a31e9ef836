"""Training of students on labelled structures."""
