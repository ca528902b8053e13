"""From run directories to committed results, and from those to tables and figures. Nothing here imports torch."""
