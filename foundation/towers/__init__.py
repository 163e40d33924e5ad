"""The image and text towers of a backbone, rewritten so that all of them look the same from outside.

    pixels -> embed -> blocks[0] ... blocks[L-1] -> pool -> embedding          (ImageTower, one class a family)

    family             embed                             blocks               pool
    ViTTower           timm's patches, tokens, position  timm's own           timm's head + open_clip's projection
    OpenClipTower      open_clip's, class token          rewritten, linear    ln_post, class token, projection
    VisformerTower     stem + convolution stage (28x28)  rewritten, linear    mean over positions, projection
    ResNetTower        stem, pooled                      bottlenecks          mean over positions, projection

Blocks work on (B, prefix + N, D) tokens; `levels` are maps (B, D, H, W) taken on the way, for heads that need places.
`run` may start and stop at any block, so a caller can share the lower blocks of one picture between adapters.
One file a family; `tower.py` holds what they share, `rewriting.py` chooses one, `text.py` is the text tower. Single blocks
are in `foundation/blocks.py`; `foundation/backbone.py` joins the two towers.
"""
