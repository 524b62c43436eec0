"""One update of the weights: a window of micro-batches, its gradients, the step."""
