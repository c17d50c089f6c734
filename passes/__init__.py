"""What to do: sites become plans, plans become rewritten graphs. The order of the passes is this page."""
