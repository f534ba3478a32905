"""The models in Flax: families of vision language models, SigLIP, and what they share.

Letters, the same in einsum strings, docstrings and shape comments:
B batch, R rollouts per prompt, T tokens, C completion tokens, S keys, D model, F frame pairs,
W windows, N query heads, K key/value heads, G query heads per key/value head, H head dim, M mlp,
L layers, V vocabulary, X values of a patch, Z visual tokens of a row, E values of a visual token.
"""
