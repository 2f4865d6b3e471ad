"""Where a volume lies, by its PersistentVolume. Pure."""

from csi.core.kubernetes import Volume


def of(volume: Volume, topology_key: str) -> frozenset[str]:
    """The values of the driver's topology key on which the volume can be; empty when its affinity doesn't say."""
    terms = volume.spec.node_affinity.required.node_selector_terms
    named = [
        frozenset(requirement.values)
        for term in terms
        for requirement in term.match_expressions
        if requirement.key == topology_key and requirement.operator == "In"
    ]
    # A term without the key would let the volume be anywhere: then nothing is known.
    return frozenset().union(*named) if named and len(named) == len(terms) else frozenset()
