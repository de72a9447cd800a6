"""Records of FTS and of Rucio as they send them, of three versions of FTS; names and addresses are made up."""

from __future__ import annotations

from typing import Any

# As FTS 3 sends them: numbers in strings (2016), numbers and more fields, enveloped (2017), the names of today.
FTS_2016: dict[str, Any] = {
    "tr_id": "2016-06-22-2201__se1.site-a.example__se2.grid.site-b.example__856147523__4d964812-2576-58e0-92d0-a2ef2e24afac",
    "endpnt": "fts3.site-a.example", "vo": "atlas", "src_site_name": "", "dst_site_name": "",
    "src_url": "srm://se1.site-a.example:8446/srm/managerv2?SFN=/dpm/atlas/rucio/mc15/5d/cb/EVNT.08775130.pool.root.1",
    "dst_url": "srm://se2.grid.site-b.example:8443/srm/managerv2?SFN=/pnfs/atlas/rucio/mc15/5d/cb/EVNT.08775130.pool.root.1",
    "src_hostname": "se1.site-a.example", "dst_hostname": "se2.grid.site-b.example",
    "timestamp_tr_st": "1466632862284", "timestamp_tr_comp": "1466632865616", "t_error_code": "", "t_final_transfer_state": "Ok",
    "tr_bt_transfered": "10565043", "f_size": "10565043", "t__error_message": "",
    "tr_timestamp_start": "1466632860151.000000", "tr_timestamp_complete": "1466632866232.000000",
    "user_dn": "/DC=example/OU=Users/CN=jdoe/CN=Robot: Data Management",
    "file_metadata": {"scope": "mc15", "name": "EVNT.08775130.pool.root.1", "activity": "Production Output"},
}  # fmt: skip
NUMBERS = ("timestamp_tr_st", "timestamp_tr_comp", "tr_bt_transfered", "f_size", "tr_timestamp_start", "tr_timestamp_complete")
FTS_2017 = FTS_2016 | {name: int(float(FTS_2016[name])) for name in NUMBERS} | {
    "job_id": "4d964812-2576-58e0-92d0-a2ef2e24afac", "file_id": 856147523, "user": "", "t_final_transfer_state_flag": 1,
}  # fmt: skip
FTS_TODAY = {name: FTS_2017[name] for name in reversed(FTS_2017) if name not in ("f_size", "endpnt")} | {
    "file_size": 10565043, "activity": None, "scitag": 65, "transfer_type": "3rd pull", "job_multihop": False,
}  # fmt: skip

TRACE: dict[str, Any] = {
    "eventType": "download", "eventVersion": "37.0.0", "uuid": "0c3a9f6b2f6d4c1f9f3a0b8d5e7c1a24", "scope": "mc20",
    "filename": "AOD.000017.pool.root.1", "dataset": "mc20.AOD", "datasetScope": "mc20", "filesize": 2_000_000_000,
    "remoteSite": "SITE-A_DATADISK", "localSite": "SITE-B", "hostname": "wn17.site-b.example", "ip": "192.0.2.17",
    "transferStart": 1699999000.25, "transferEnd": 1699999100.75, "timeStart": 1699998990.0, "timeEnd": 1699999101.5,
    "traceTimeentryUnix": 1699999102.9, "clientState": "DONE", "stateReason": "OK", "account": "jdoe",
    "usrdn": "/DC=example/CN=jdoe", "protocol": "davs", "traceId": "5f1c0b9a7e3d4f2a8c6b1d0e9f7a3b5c", "vo": "def",
}  # fmt: skip
