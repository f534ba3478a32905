"""The mains behind `videorft COMMAND`: they turn flags into options and call a room."""
