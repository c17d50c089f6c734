"""What is there: reads a graph and describes it as typed sites. Never changes a graph."""
