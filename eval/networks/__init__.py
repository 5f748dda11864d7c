"""Feature networks: a table of them, their weights, and the cache of what they computed.

Each is named by the function that loads it, as text: ``--help`` lists them without torch.
"""

NETWORKS: dict[str, str] = {
    "inception": "eval.networks.inception:load",  # the standard one of FID
    "lite0": "eval.networks.lite0:load",  # a tenth of the work
}
