"""From a graph to a plan: which norms there are and where each of them goes. Nothing is edited here."""
