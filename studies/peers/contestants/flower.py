"""Flower's simulation: `python flower.py WORKLOAD RESULT`, in an environment with `flwr[simulation]`.

As many nodes as a cohort has clients, all of which take part in every round, so that Flower samples nobody.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from shared import Stopwatch, loaded, train, write  # noqa: E402


def client_app() -> ClientApp:
    """Return the app that trains a client."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        work = loaded(os.environ["PEERS_WORKLOAD"])
        round = int(message.content["config"]["server-round"])
        client = work.cohorts[round - 1][int(context.node_config["partition-id"])]
        work.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loss = train(work, work.model, client)
        metrics = MetricRecord({"loss": loss, "num-examples": len(work.rows[client][1])})
        arrays = ArrayRecord(work.model.state_dict())
        return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


class TimedFedAvg(FedAvg):
    """FedAvg that notes the end of each round, and keeps its model."""

    def __init__(self, clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.watch = Stopwatch()
        self.arrays = ArrayRecord()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and note the time.

        Raises:
            RuntimeError: If a client did not train; Flower would average the others.
        """
        answers = list(replies)
        if len(answers) != self.min_train_nodes or any(answer.has_error() for answer in answers):
            raise RuntimeError(f"{len(answers)} clients answered; {self.min_train_nodes} are to train")
        arrays, metrics = super().aggregate_train(server_round, answers)
        if arrays is None:
            raise RuntimeError("there is no average")
        self.arrays = arrays
        self.watch.lap()
        return arrays, metrics


def main(path: Path, result: Path) -> None:
    """Run all rounds of the workload."""
    work = loaded(str(path))
    cpus = len(os.sched_getaffinity(0))
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = TimedFedAvg(len(work.cohorts[0]))
        strategy.start(grid, ArrayRecord(work.model.state_dict()), num_rounds=len(work.cohorts))
        write(result, strategy.watch.seconds, strategy.arrays.to_torch_state_dict())

    resources = {"init_args": {"num_cpus": cpus}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client_app(), num_supernodes=len(work.cohorts[0]), backend_config=resources)


if __name__ == "__main__":
    os.environ |= {"PEERS_WORKLOAD": sys.argv[1], "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    main(Path(sys.argv[1]), Path(sys.argv[2]))
