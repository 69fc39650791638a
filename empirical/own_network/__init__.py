"""A network of one's own: read, bounded, attacked, and the page that `check` makes of it all."""
