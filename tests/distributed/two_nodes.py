"""Prompts made by a Ray cluster of two nodes on this machine, a core each.

``python -m tests.distributed.two_nodes FOLDER`` publishes the stages before in FOLDER, makes the prompts, and prints
the number of nodes and the hash of either table.
"""

import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from recranker.distributed import cluster
from recranker.distributed.instructions import Parts, published_source, write_prompts
from recranker.schema import PROMPTS, QUARANTINE
from recranker.store import Origin
from tests.distributed.test_instructions import MAKER, published

STORE_BYTES = 100 * 1024 * 1024


def main(folder: Path) -> None:
    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        os.environ["RAY_ADDRESS"] = nodes.address
        cluster.connect()
        store = published(folder)
        with store.publish("instruct", Origin("s", "c", {})) as writer:
            parts = Parts(writer.filesystem, writer.folder(PROMPTS), writer.folder(QUARANTINE))
            write_prompts(published_source(store), MAKER, parts, at_least=6)
        tables = store.require("instruct").tables
        print(sum(node["Alive"] for node in ray.nodes()), *(tables[name]["hash"] for name in ("prompts", "quarantine")))
    finally:
        cluster.disconnect()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
