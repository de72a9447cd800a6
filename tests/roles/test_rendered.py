def test_x(rendered):
    import subprocess
    print(rendered.log[-3000:])
    print(subprocess.run(["find", rendered.root, "-type","f"],capture_output=True,text=True).stdout)
