"""Which scope each address needs. What is not written here needs "admin", so that a new route is never open by neglect.

A test walks the app's routes and fails for one that is missing, or written here but not there.
"""

from __future__ import annotations

from serving.keys import Scope

# method and path template -> scope; None: any key will do. HEAD and OPTIONS are asked for the strictest.
ROUTES: dict[tuple[str, str], Scope | None] = {
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/metrics"): "admin",
    ("GET", "/v1/models"): "infer",
    ("GET", "/v1/models/*"): "infer",
    ("POST", "/v1/chat/completions"): "infer",
    ("POST", "/v1/embeddings"): "infer",
    ("POST", "/v1/zero_shot"): "infer",
    ("POST", "/v1/zero_shot/hf"): "infer",
    ("POST", "/v1/classify"): "infer",
    ("POST", "/v1/segment"): "infer",
    ("POST", "/v1/anomaly"): "infer",
    ("POST", "/v1/fuse"): "infer",
    ("POST", "/v1/analyze"): "infer",
    ("POST", "/v1/adapters/*"): "admin",
    ("DELETE", "/v1/adapters/*"): "admin",
    ("POST", "/v1/load_lora_adapter"): "admin",
    ("POST", "/v1/unload_lora_adapter"): "admin",
    ("DELETE", "/v1/cache"): "infer",
    ("DELETE", "/v1/cache/*"): "infer",
}


def scope_for(method: str, path: str) -> Scope | None:
    """The scope a request needs; None where any key will do."""
    for (route_method, route_path), scope in ROUTES.items():
        is_here = path.startswith(route_path[:-1]) if route_path.endswith("*") else path == route_path
        if is_here and method == route_method:
            return scope
    return "admin"
