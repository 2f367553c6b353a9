"""`nox -s faults`: mistakes that porters make, planted one by one; the suite must catch each, and blame the right name."""
