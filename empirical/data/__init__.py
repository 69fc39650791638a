"""Where examples come from: files, OpenML, Gaussian classes. ``empirical.datasets`` is the way in."""
