"""The ground floor: errors, settings, command line, nests of tensors, files. Imports nothing of the engine above it."""
