"""Where the numbers of a run go: TensorBoard, JSON lines, and whatever a user adds."""
