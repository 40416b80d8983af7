"""What scan and rebuild both know about logs: where a day's files lie, which column plays which role, how rows become events.

Scan judges and rebuild reads with these same functions, so that what was counted is what is used. Imports `schema` only.
"""
