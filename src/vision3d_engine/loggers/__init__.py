"""Where messages and numbers go: console, text file, TensorBoard, JSON lines."""
