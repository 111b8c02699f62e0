"""The web process as its supervisor starts it, without the weight of a model."""

from dicomnode.process import config_argument, run_to_the_end
from dicomnode.settings import load_node_settings
from dicomnode.web.app import serve

if __name__ == "__main__":
    run_to_the_end(lambda: serve(load_node_settings(config_argument())))
