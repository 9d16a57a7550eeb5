"""`darkroom audit` and `darkroom doctor`: rules without input or output, and the readers that apply them."""
