"""Bridges to other libraries of explanations, one module each, imported where it is used: `lxt_fx.bridges.captum`, `inseq`,
`quantus`, `zennit`, `transformer_lens` and `pipelines`. docs/coming_from.md has their code beside ours."""
