"""`vesalius serve` and `vesalius up`: the API, alone or with the page, until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from app.cluster_options import add_cluster, cluster_config
from app.server_options import (
    add_chat_backend,
    add_engine,
    add_model,
    add_tls,
    add_workers,
    chat_backend,
    device_list,
    engine_options,
    tls_config,
)
from app.show import Show
from app.words import RESEARCH_USE

if TYPE_CHECKING:
    from serving.config import ServerConfig


KEY_VARIABLE = "VESALIUS_API_KEY"


def add_serve_options(command: argparse.ArgumentParser, *, has_page: bool) -> None:
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=8000)
    if has_page:
        command.add_argument("--ui-port", type=int, default=7860)
    else:
        add_tls(command)
        add_engine(command)
        add_cluster(command)
    add_workers(command)
    add_model(command)
    command.add_argument(
        "--adapter-memory", type=int, default=256, metavar="MIB", help="for adapters on the device; 256 where left out"
    )
    add_chat_backend(command)


def server_config(chosen: argparse.Namespace, host: str, port: int) -> ServerConfig:
    """The server that the options describe, with a key for the page; the operator's own comes from the environment."""
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


def run_serve(chosen: argparse.Namespace, show: Show) -> None:
    from serving.logs import configure
    from serving.server import serve

    configure()
    config, cluster = server_config(chosen, chosen.host, chosen.port), cluster_config(chosen)

    def announce(line: str) -> None:
        print(line, flush=True)

    if cluster is None:
        serve(config, announce)
    else:
        from serving.cluster import serve_cluster

        serve_cluster(config, cluster, announce)


def run_up(chosen: argparse.Namespace, show: Show) -> None:
    from app.ui import run_page
    from serving.logs import configure
    from serving.server import background

    configure(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: what runs may finish
    config = server_config(chosen, chosen.host, chosen.port)
    with background(config) as url:
        page = f"http://127.0.0.1:{chosen.ui_port}"
        text = f"Page: {page}\nAPI:  {url}\nTry:  vesalius zero-shot FILE --label effusion --label cardiomegaly\n{RESEARCH_USE}"
        show({"page": page, "api": url}, text)
        sys.stdout.flush()
        run_page(url, chosen.ui_port, config.page_key)
