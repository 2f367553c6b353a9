"""`nox -s upgrade`: did another version of MAX make it wrong, or slow?"""
