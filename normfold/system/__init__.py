"""What the package asks of the machine: files, clocks, other processes, harmless text. Knows nothing of models."""
