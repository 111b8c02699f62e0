"""The whole loop in one command: a centre, a node and a stand-in PACS on this machine, on real images."""
