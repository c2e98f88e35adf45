"""What a training prints."""

from types import SimpleNamespace

from anomalib_mixedteacher.training_output import print_results


def test_a_training_without_a_checkpoint_names_no_next_command(capsys):
    for path in ("", None):
        print_results(SimpleNamespace(post_processor=None), {}, path)
        assert capsys.readouterr().out == "test: no test images\ncheckpoint: none was written\n"
