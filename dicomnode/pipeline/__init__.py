"""The stories of the node, one module each: what happens to a study, a correction, an update.

Every story can be repeated: it is given a leased job, writes its bytes under a name derived from their
content, and ends in one database transaction. A repeat after a crash finds the bytes and ends alike.
"""
