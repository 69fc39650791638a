"""Three conjectures to start from: copy one, change the claim, and hunt it with ``falsify --conjecture``."""
