"""The `vesalius` command: one line a person types, one answer, as text or (`--json`) as one JSON document.

Nothing heavy is imported before a command needs it. `ask`, `zero-shot` and `predict` speak to a running server where one
answers, else to a server they start for the one answer. A VesaliusError becomes one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.audit_command import add_audit_command, run_audit
from app.cluster_options import add_cluster, cluster_config
from app.data_command import add_data_command, run_data
from app.deidentify_command import add_deidentify_command, run_deidentify
from app.keys_command import add_keys_command, run_keys
from app.predict_command import add_predict_options, bar, finding_line, predict
from app.server_options import (
    add_chat_backend,
    add_engine,
    add_tls,
    add_workers,
    chat_backend,
    device_list,
    engine_options,
    tls_config,
)
from app.words import RESEARCH_USE
from foundation.errors import FilmUnreadable, InvalidRequest, VesaliusError

if TYPE_CHECKING:
    from serving.client import Client
    from serving.config import ServerConfig

DEFAULT_SERVER = "http://127.0.0.1:8000"
KEY_VARIABLE = "VESALIUS_API_KEY"

Show = Callable[[Any, str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    chosen = build_parser().parse_args(arguments)
    as_json = getattr(chosen, "json", False)
    try:
        chosen.run(chosen, _shower(as_json))
    except VesaliusError as error:
        if as_json:
            print(json.dumps({"error": {"code": error.code, "message": error.message, "param": error.param}}))
        print(f"vesalius: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _shower(as_json: bool) -> Show:
    def show(value: Any, text: str) -> None:
        print(json.dumps(value, ensure_ascii=False) if as_json else text)

    return show


def build_parser() -> argparse.ArgumentParser:
    """The command line as it stands; `--help` of it is the contract."""
    parser = argparse.ArgumentParser(prog="vesalius", description=f"Ask medical images. {RESEARCH_USE}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace, Show], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="answer with one JSON document")
        return command

    for name, run, text in (
        ("serve", _serve, "serve the API"),
        ("up", _up, "serve the API and the page, and say where to look"),
    ):
        command = add(name, run, text)
        command.add_argument("--host", default="127.0.0.1")
        command.add_argument("--port", type=int, default=8000)
        if name == "up":
            command.add_argument("--ui-port", type=int, default=7860)
        else:
            add_tls(command)
            add_engine(command)
            add_cluster(command)
        add_workers(command)
        _add_model(command)
        command.add_argument(
            "--adapter-memory", type=int, default=256, metavar="MIB", help="for adapters on the device; 256 where left out"
        )
        add_chat_backend(command)

    for name, run, text in (
        ("ask", _ask, "ask a question about one film"),
        ("zero-shot", _zero_shot, "score films against labels of your own"),
        ("predict", _predict, "run films through an adapter of any task"),
    ):
        command = add(name, run, text)
        if name == "predict":
            add_predict_options(command)
        elif name == "ask":
            command.add_argument("file", type=Path)
            command.add_argument("question")
            command.add_argument("--adapter", metavar="NAME", help="a chat adapter to answer through; see `adapters list`")
        else:
            command.add_argument("files", type=Path, nargs="+", metavar="FILE")
        if name == "zero-shot":
            command.add_argument("--label", action="append", required=True, dest="labels")
            command.add_argument("--template", action="append", dest="templates", help='a sentence with "{}"')
            command.add_argument("--scoring", choices=("softmax", "sigmoid", "pairwise"))
        command.add_argument("--server", default=DEFAULT_SERVER, help="a running server, or `none` to start one")
        _add_model(command)

    command = add("pretrain", _pretrain, "train a backbone as a recipe says, or go on with it")
    command.add_argument("recipe")
    command.add_argument("--out", type=Path)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command = add("finetune", _finetune, "train an adapter from a manifest")
    command.add_argument("task")
    command.add_argument("--manifest", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--recipe", help="a name or a TOML file; the task's own recipe where left out")
    command.add_argument("--checkpoint", default="bundled")
    command.add_argument("--resume", action="store_true")
    command = add("evaluate", _evaluate, "measure an adapter, zero-shot or chat")
    command.add_argument("subject", metavar="ADAPTER|zero-shot|chat")
    command.add_argument("--manifest", type=Path, required=True)
    command.add_argument("--split", default="test")
    command.add_argument("--where", action="append", default=[])
    command.add_argument("--report", type=Path, required=True)
    command.add_argument("--checkpoint", default="bundled")
    command.add_argument("--baseline", action="append", default=[], dest="baselines", choices=("hog", "cnn", "unet"))
    command.add_argument("--phantoms", type=int, help="how many synthetic films; 0 for none")
    command = add("adapters", _adapters, "list, show, verify, add, remove or compact adapters")
    command.add_argument("action", choices=("list", "show", "verify", "add", "remove", "compact"))
    command.add_argument("name", nargs="?")
    command.add_argument("--adapters", type=Path, help="your own adapters' folder")
    command = add("checkpoint", _checkpoint, "say what a checkpoint is")
    command.add_argument("action", choices=("inspect",))
    command.add_argument("where")
    command = add("export", _export, "write the chat model as a plain transformers folder")
    command.add_argument("--checkpoint", type=Path)
    command.add_argument("--out", type=Path, required=True)
    add_data_command(add("data", run_data, "check a manifest before anything is trained on it"))
    add_keys_command(add("keys", run_keys, "make, list or revoke API keys"))
    add_audit_command(add("audit", run_audit, "check that the audit log is whole"))
    add_deidentify_command(add("deidentify", run_deidentify, "write DICOM films without their patients"))
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", default="bundled", help="bundled, a folder, or hf-hub:ID")
    command.add_argument("--adapters", help="your own adapters' folder")


# Serving


def _config(chosen: argparse.Namespace, host: str, port: int) -> ServerConfig:
    from serving.config import EngineConfig, ServerConfig
    from serving.keys import new_key

    engine = EngineConfig(
        checkpoint=chosen.checkpoint,
        adapters_dir=chosen.adapters,
        adapter_bytes=getattr(chosen, "adapter_memory", 256) << 20,
        **engine_options(chosen),
    )
    api_key = os.environ.get(KEY_VARIABLE) or None
    return ServerConfig(
        host=host,
        port=port,
        api_key=api_key,
        page_key=new_key(),
        engine=engine,
        tls=tls_config(chosen),
        chat_backend=chat_backend(chosen),
        devices=device_list(chosen),
        workers=getattr(chosen, "workers", 1),
    )


def _serve(chosen: argparse.Namespace, show: Show) -> None:
    from serving.logs import configure
    from serving.server import serve

    configure()
    config, cluster = _config(chosen, chosen.host, chosen.port), cluster_config(chosen)

    def announce(line: str) -> None:
        print(line, flush=True)

    if cluster is None:
        serve(config, announce)
    else:
        from serving.cluster import serve_cluster

        serve_cluster(config, cluster, announce)


def _up(chosen: argparse.Namespace, show: Show) -> None:
    from app.ui import run_page
    from serving.logs import configure
    from serving.server import background

    configure(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: what runs may finish
    config = _config(chosen, chosen.host, chosen.port)
    with background(config) as url:
        page = f"http://127.0.0.1:{chosen.ui_port}"
        text = f"Page: {page}\nAPI:  {url}\nTry:  vesalius zero-shot FILE --label effusion --label cardiomegaly\n{RESEARCH_USE}"
        show({"page": page, "api": url}, text)
        sys.stdout.flush()
        run_page(url, chosen.ui_port, config.page_key)


@contextmanager
def _client(chosen: argparse.Namespace) -> Iterator[Client]:
    """A client of the running server, or of one that lives as long as the block."""
    import httpx

    from serving.client import Client

    key = os.environ.get(KEY_VARIABLE) or None
    if chosen.server != "none":
        try:
            httpx.get(f"{chosen.server}/healthz", timeout=1.0, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            if chosen.server != DEFAULT_SERVER:
                raise InvalidRequest(f"No server answers at {chosen.server}; start it or leave --server out.") from None
        else:
            with Client(chosen.server, api_key=key) as client:
                yield client
            return
    from serving.server import background

    config = _config(chosen, "127.0.0.1", 0)
    with background(config) as url, Client(url, api_key=config.page_key) as client:
        yield client


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FilmUnreadable(f"There is no file {str(path)!r}.", param="file")
    return path.read_bytes()


def _ask(chosen: argparse.Namespace, show: Show) -> None:
    film = _bytes(chosen.file)
    with _client(chosen) as client:
        pieces = list(client.ask(chosen.question, film=film, model=chosen.adapter))
    text = "".join(piece.text for piece in pieces)
    extras = next((piece.extras for piece in reversed(pieces) if piece.extras), None)
    answer = {"answer": text, "vesalius": extras.model_dump() if extras else None}
    lines = [text]
    if extras and extras.evidence:
        lines += [finding_line(one.label, one.probability, one.threshold) for one in extras.evidence.findings]
    show(answer, "\n".join([*lines, RESEARCH_USE]))


def _zero_shot(chosen: argparse.Namespace, show: Show) -> None:
    films = [_bytes(path) for path in chosen.files]
    with _client(chosen) as client:
        answer = client.zero_shot(films, chosen.labels, templates=chosen.templates, scoring=chosen.scoring)
    _show_items(chosen.files, answer.model_dump(mode="json"), show)


def _predict(chosen: argparse.Namespace, show: Show) -> None:
    films = [_bytes(path) for path in chosen.files]
    with _client(chosen) as client:
        predict(client, chosen, films, show)


def _show_items(files: Sequence[Path], answer: dict[str, Any], show: Show) -> None:
    lines = []
    for path, item in zip(files, answer["data"], strict=True):
        lines.append(f"{path.name}")
        if item.get("error"):
            lines.append(f"  {item['error']['message']}")
        elif not item.get("assessed", True):
            lines.append(f"  not assessed: this looks like {item.get('looks_like') or 'something else'}")
        else:
            lines += [f"  {bar(one['label'], one['score'])}" for one in item["scores"]]
    show(answer, "\n".join([*lines, RESEARCH_USE]))


# Training and folders


def _pretrain(chosen: argparse.Namespace, show: Show) -> None:
    from training.pretraining.bundle import pretrain

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = pretrain(chosen.recipe, chosen.out, log, chosen.device)
    show({"checkpoint": str(folder)}, f"The checkpoint lies in {folder}; serve it with --checkpoint {folder}.")


def _finetune(chosen: argparse.Namespace, show: Show) -> None:
    from training.finetuning.finetune import finetune

    done = finetune(
        chosen.task, chosen.manifest, chosen.out, chosen.recipe, chosen.checkpoint, resume=chosen.resume, is_quiet=chosen.json
    )
    figures = ", ".join(f"{split} {value:.3f}" for split, value in done.scores.items())
    show(
        {"adapter": str(done.adapter), done.measure: dict(done.scores)},
        f"The adapter lies in {done.adapter}. {done.measure.capitalize()}: {figures}.",
    )


def _evaluate(chosen: argparse.Namespace, show: Show) -> None:
    from adapters.store import AdapterStore
    from app.chat_opener import open_chat
    from training.evaluating.evaluate import Options, evaluate

    options = Options(baselines=tuple(chosen.baselines))
    if chosen.phantoms is not None:
        options = replace(options, phantoms=chosen.phantoms, chat_phantoms=chosen.phantoms)
    evaluate(
        chosen.subject,
        chosen.manifest,
        chosen.split,
        chosen.where or None,
        chosen.report,
        chosen.checkpoint,
        options,
        store=AdapterStore.default(),
        chat=open_chat,
        command=" ".join(["vesalius", *sys.argv[1:]]),
        log=lambda line: print(line, file=sys.stderr),
    )
    show({"report": str(chosen.report)}, f"Report: {chosen.report / 'report.md'}")


def _adapters(chosen: argparse.Namespace, show: Show) -> None:
    from adapters.store import AdapterStore

    store = AdapterStore.default(chosen.adapters)
    if chosen.action != "list" and chosen.name is None:
        raise InvalidRequest(f"`adapters {chosen.action}` needs a name.", param="name")
    if chosen.action == "remove":
        store.remove(chosen.name)
        show({"removed": chosen.name}, f"Removed {chosen.name}.")
        return
    if chosen.action == "compact":
        from adapters.half import compact

        compact(store.get(chosen.name).folder)
    found = {
        "list": lambda: list(store.list()),
        "show": lambda: [store.get(chosen.name)],
        "verify": lambda: [store.verify(chosen.name)],
        "compact": lambda: [store.verify(chosen.name)],
        "add": lambda: [store.add(chosen.name)],
    }[chosen.action]()
    plain: list[dict[str, Any]] = [
        {"name": one.name, "digest": one.digest, "bundled": one.is_bundled, "labels": list(one.card.labels)} for one in found
    ]
    lines = [f"{one['name']:24} {str(one['digest'])[:12]}  {', '.join(map(str, one['labels']))}" for one in plain]
    if chosen.action == "list":
        refused = store.refused()
        plain += [{"name": one.name, "refused": one.reason} for one in refused]
        lines += [f"{one.name:24} refused: {one.reason}" for one in refused]
    show(plain, "\n".join(lines) or "No adapters.")


def _checkpoint(chosen: argparse.Namespace, show: Show) -> None:
    from foundation.checkpoint import open_checkpoint

    passport = open_checkpoint(chosen.where).passport
    show(json.loads(passport.to_json()), passport.to_json())


def _export(chosen: argparse.Namespace, show: Show) -> None:
    from foundation.checkpoint import open_checkpoint
    from foundation.export import export_llava

    folder = export_llava(chosen.checkpoint or open_checkpoint("bundled").folder, chosen.out)
    show({"out": str(folder)}, f"Written: {folder}")


if __name__ == "__main__":
    sys.exit(main())
