"""Tuning by a Ray cluster of two nodes on this machine, a core and hence a worker on each.

``python -m tests.distributed.two_nodes_training MODEL FOLDER`` trains eight toy prompts and prints the number of nodes
and of CPUs on each; adapter and checkpoints are in FOLDER.
"""

import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from recranker.distributed import cluster
from recranker.distributed.training import tune_adapters
from recranker.llm.training import plan_adapters
from tests.distributed.test_training import LLM, TUNE
from tests.llm.prompts import toy_prompts

STORE_BYTES = 100 * 1024 * 1024


def main(model: Path, folder: Path) -> None:
    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        os.environ["RAY_ADDRESS"] = nodes.address
        cluster.connect()
        tune = TUNE.model_copy(update={"workers": 2, "checkpoint_steps": 4})
        tune_adapters(
            plan_adapters(toy_prompts(8), tune, 2048),
            model=model,
            folder=folder,
            work=folder / "work",
            llm=LLM,
            tune=tune,
            seed=0,
            tell=lambda name, report: None,
        )
        print(*(int(node["Resources"]["CPU"]) for node in ray.nodes() if node["Alive"]))
    finally:
        cluster.disconnect()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
