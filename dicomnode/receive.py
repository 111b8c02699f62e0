"""The receiver: the process that a PACS talks to. It loads no model, so it starts fast and stays small."""

from dicomnode.process import config_argument, run_to_the_end, stop_on_signals, wait_for
from dicomnode.scp import server
from dicomnode.settings import NodeSettings, load_node_settings
from dicomnode.site import configure_logging, make_folders, open_spool, opened_store, utc_now


def receive(settings: NodeSettings) -> None:
    """Receive DICOM objects until a signal ends the process."""
    stop = stop_on_signals()
    configure_logging(settings, process="receive")
    make_folders(settings)
    with opened_store(settings) as store:
        store.series.restart_quiet(utc_now())  # a receiver that was down must not look like a quiet sender
        running = server.start(settings.scp, spool=open_spool(settings), store=store, now=utc_now)
        wait_for(stop)
        running.stop()


if __name__ == "__main__":
    run_to_the_end(lambda: receive(load_node_settings(config_argument())))
