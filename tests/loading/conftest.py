import pytest

pytest.register_assert_rewrite("autoplay_rag.loading.testing")
