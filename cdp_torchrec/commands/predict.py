"""Score a file of new requests offline with an exported artifact.

    cdp_torchrec predict ARTIFACT REQUESTS output=FILE [key=value ...]
    cdp_torchrec predict runs/RUN/export new.parquet output=scores.parquet history_store=data/mine
    torchx run dist.ddp -j 1x4 launch/predict.py runs/RUN/export new.parquet output=scores.parquet

REQUESTS is a parquet file, or a directory of them, with one row per request: request_id, user_id,
timestamp (ms), the features of the log under their names, all in raw ids, and lists with one
element per candidate: item_id, the category of the gate, ... The staging files of a dataset are
such files. Behaviours come from history_store, or with the request: the lists history_item,
history_timestamp, history_category, history_action.

FILE gets one row per candidate: request_id, user_id, item_id, probability and the columns of
'keep=["position"]'. It appears whole or not at all, in place of one that is there, and may not be
among the requests or in ARTIFACT. It is the same for any number of ranks, each of which computes on
one thread. A row that cannot be scored is named by its number.
"""

from pathlib import Path

from cdp_torchrec.command_line import CommandParser
from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main
from cdp_torchrec.serving.artifact import check_is_artifact
from cdp_torchrec.serving.predict_config import PredictConfig, check_output


def main(arguments: list[str]) -> None:
    """Score what the arguments name."""
    parser = CommandParser("predict", __doc__, "key=value, or a TOML file of settings")
    parser.add_argument("artifact", type=Path, help="directory of an export")
    parser.add_argument("requests", type=Path, help="parquet file or directory")
    options = parser.parse(arguments, PredictConfig)
    if options is None:
        return
    config = load_config(PredictConfig, options.settings)
    check_output(config.output, options.requests, options.artifact)
    check_is_artifact(options.artifact)

    from cdp_torchrec.serving.predict import predict_file

    init_process_group()
    predicted = predict_file(options.artifact, options.requests, config)
    if is_rank_zero():
        if predicted.unread:
            print(f"not read: {', '.join(predicted.unread)}")
        if not predicted.reads_histories and config.history_store is not None:
            print("history_store has no effect: the model reads no behaviours")
        if predicted.empty_histories == 1.0:
            advice = (
                "name a dataset with history_store=DIR"
                if config.history_store is None
                else "are user_id and timestamp those of history_store?"
            )
            print(f"WARNING: the model reads histories, and every one was empty: {advice}")
        elif predicted.empty_histories:
            print(f"history empty: {predicted.empty_histories:.1%} of the requests")
        for what, shares in (
            ("not given", predicted.missing),
            ("never seen in training", predicted.unknown),
        ):
            if shares:
                print(f"{what}: {', '.join(f'{n} {share:.1%}' for n, share in shares.items())}")
        if predicted.unknown.get("item_id") == 1.0:
            print("WARNING: the model knows none of these items: codes, or ids of another dataset?")
        print(
            f"{config.output}: {predicted.num_candidates:,} candidates of "
            f"{predicted.num_requests:,} requests"
        )


if __name__ == "__main__":
    run_main(main)
