"""How weight updates leave a site, are judged and merged at the aggregator, and come back as releases.

``manifest``, ``messages`` and ``signing`` say what was sent and by whom; ``admission`` and ``merging`` are
pure; ``ledger`` and ``blobs`` keep the aggregator's state, ``intake`` and ``releases`` are its stories,
``app`` is its HTTP border. A node uses ``client`` and sees nothing of the aggregator's side.
"""
