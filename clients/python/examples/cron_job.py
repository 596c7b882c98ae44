"""A cron job that needs one token for ten minutes of work, and says what to do where there is none.

Environment: KEEPER_URL, KEEPER_KEY, KEEPER_APPID.  In crontab:
    0 3 * * * python cron_job.py
"""

import os
import sys

from wechat_token_keeper import Keeper, KeeperError, NotEnoughTimeError

keeper = Keeper(os.environ["KEEPER_URL"], key=os.environ["KEEPER_KEY"], appid=os.environ["KEEPER_APPID"])
try:
    token = keeper.token(minimum_seconds=600)
except NotEnoughTimeError as error:
    sys.exit(f"Start the job a few minutes later. {error}")
except KeeperError as error:
    sys.exit(str(error))
print(f"A token of {len(token)} characters, good for ten minutes")  # noqa: T201 - this is where the work begins
