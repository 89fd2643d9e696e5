"""Pieces of YAML that inputs of the fuzzer are made of."""

TEXT = r"""
010 0o7 0b1 0b_ 0x_ 0xff 1:30 1_000 1e3 1e309 1e-400 -1e30 1e30 1e31 9223372036854775807 9223372036854775808 -1 0 .inf
-.inf .nan yes no on off null ~ true false 2020-01-01 <<: *a &a !!python/object:os.system !!binary --- ... %YAML {} []
{a: [ ] } , : ? - | > # ' " \ @ ` $HOME $NOT_SET ~/x ~nobody é 999999999999999999999999 fedavg ca-hfp async deadline
solved resample noise imagefolder s3://a:b@c/d sqlite:///~/x ../../x
"""
PIECES = TEXT.split()
